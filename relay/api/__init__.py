"""The API of the server: HTTP routes and the services of its sessions."""
