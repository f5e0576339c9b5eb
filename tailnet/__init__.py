"""A DERP relay, and the library it is made of.

How the library is layered, lowest first:

- ``errors`` and ``keys`` know nothing of any protocol.
- One folder per protocol (``derp``, ``stun``): bytes in and bytes out, no
  sockets, no clocks, no tasks. Both ends of each protocol live there.
- ``derp/client.py`` puts the DERP protocol on trio sockets.
- The relay program is the package ``relay`` beside this one; the library
  never imports it.

What is public is re-exported here, in ``__all__``.
"""
