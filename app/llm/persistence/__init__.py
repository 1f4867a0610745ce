"""The ledger on a database: tables, statements, protocol, and the two bindings of its port."""
