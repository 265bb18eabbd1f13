"""The documentation site: README, docs/, and pages made of the code's own texts."""
