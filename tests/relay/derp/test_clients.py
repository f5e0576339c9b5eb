"""Who is active among the connections of one key, against derper's own rules."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, strategies as st

from relay.derp.clients import Client


@dataclass
class Model:
    """derpserver.go clientSet and dupClientSet, written out as they stand."""

    members: list[int] = field(default_factory=list)
    active: int | None = None
    last: int | None = None
    history: list[int] = field(default_factory=list)

    def add(self, connection: int) -> None:
        if len(self.members) == 1:
            self.history = [self.members[0]]
        elif self.members:
            self.history.append(connection)
        if self.members:
            self.last = connection
        self.members.append(connection)
        self.active = connection

    def speak(self, connection: int) -> None:
        if len(self.members) < 2:
            return
        self.last = self.active = connection
        if self.history[-1:] != [connection]:
            self.history.append(connection)

    def remove(self, connection: int) -> None:
        self.members.remove(connection)
        self.history = [c for c in self.history if c != connection]
        if self.last == connection:
            self.last = None
        if len(self.members) == 1:
            self.active = self.members[0]
            self.last = None
        elif self.last is not None:
            self.active = self.last
        else:
            self.active = self.history[-1] if self.history else None


@given(
    st.lists(st.tuples(st.sampled_from(["add", "speak", "remove"]), st.integers(0, 5)))
)
def test_the_active_one_is_derpers(steps: list[tuple[str, int]]) -> None:
    client: Client[int] = Client(b"k" * 32)
    model = Model()
    for number, (step, pick) in enumerate(steps):
        if step == "add" or not model.members:
            client.add(number)
            model.add(number)
        else:
            chosen = model.members[pick % len(model.members)]
            if step == "remove":
                client.remove(chosen)
                model.remove(chosen)
            elif client.is_duplicate:
                client.note_activity(chosen)
                model.speak(chosen)
        assert client.connections == model.members
        assert client.active == model.active
        assert client.is_duplicate == (len(model.members) > 1)
