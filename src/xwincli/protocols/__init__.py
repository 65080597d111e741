"""How a question about models is put to a judge and what is counted: one file per protocol."""
