"""A run, or a comparison, as one self-contained page: no script, nothing from elsewhere, fit for a phone and for print."""
