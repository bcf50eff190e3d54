"""What people ask of a search; reads the database, never writes."""
