"""What the relay costs, measured beside the real derper.

``python -m bench`` runs it; ``make bench`` and ``make bench-quick`` build what
it needs first. The parts:

- ``scenarios``: the table of what is measured, and the targets.
- ``running``: relays, the load generator of ``bench/loader`` and real
  clients, one fresh relay for each run.
- ``framing``: the codec alone, without sockets.
- ``record``: what a run of the bench leaves, as JSON.
- ``figures``, ``judgement``: medians, ratios, verdicts and faults. No I/O.
- ``report``, ``chart``: the same as Markdown and SVG. No I/O.
"""
