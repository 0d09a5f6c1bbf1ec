"""Networks of several families. Import the modules; this package re-exports nothing."""
