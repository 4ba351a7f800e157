"""De-identification of data sets, cohorts and folders by PS3.15 Annex E."""
