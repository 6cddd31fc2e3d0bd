"""What a comparison's finished cells say: the primary tests, everything else as exploratory, tables, plots, one page."""
