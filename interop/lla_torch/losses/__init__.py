"""torch's criteria and steps as losses."""
