"""The program ``tailnet``: one file a family of commands.

``main`` collects them. A command that works on a server's state imports the
package ``relay`` inside its function, so that the others load without it.
"""
