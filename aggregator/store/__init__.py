"""The store is the state: tables, the engine that runs transactions, and the rows of each subject."""
