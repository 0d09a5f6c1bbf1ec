"""Other people's checkpoint formats: settings, normalisation, weights and their names. Import the modules."""
