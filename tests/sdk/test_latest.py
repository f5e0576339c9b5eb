from __future__ import annotations

import trio
import trio.testing

from tailnet.sdk.latest import Latest


async def test_each_reader_gets_the_value_and_its_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    latest: Latest[int] = Latest()
    seen: list[list[int]] = [[], []]

    async def read(into: list[int]) -> None:
        reader = aiter(latest)
        while len(into) < 4:
            try:
                into.append(await anext(reader))
            except StopAsyncIteration:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, seen[0])
        await trio.testing.wait_all_tasks_blocked()
        assert latest.value is None
        for value in (1, 1, 2):
            latest.set(value)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read, seen[1])
        await trio.testing.wait_all_tasks_blocked()
        latest.set(3)
        latest.set(4)  # nobody had the time to see the 3
        latest.close()
    assert seen == [[1, 2, 4], [2, 4]]
    assert latest.value == 4
