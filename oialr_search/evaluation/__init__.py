"""One evaluation: its worker process, device, files, outcome, and its way to the database."""
