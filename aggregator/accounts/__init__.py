"""What a run cost in bytes, from the `rpc_finished` events of both sides' logs. Pure functions over log records.

`logs` reads calls, `goodput` tells what was sent once from what was sent again, `tables` adds up, `reconciliation` holds both
sides against each other, `overhead` models what the wire adds, `comparison` has other methods' bytes, `page` writes HTML.
"""
