"""What people see on a terminal: tables of rows, and screens drawn again and again."""
