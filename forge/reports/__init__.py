"""Reports about runs: training history to matplotlib figures. No tracker and no model in here."""
