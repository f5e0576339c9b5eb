"""What the server remembers: users, keys, workspaces, agents, their reports.

``model`` says what there is, ``store`` what one can do with it, and
``sql_store`` does it on a database.
"""
