"""The world. Each module serves ports with one kind of library and knows no other one."""
