"""One file a revision, named and numbered like `schema.REVISION`."""
