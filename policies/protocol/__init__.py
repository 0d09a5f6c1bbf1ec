"""How a policy is reached over a socket: what goes over the wire, and who keeps the connections. Import the modules."""
