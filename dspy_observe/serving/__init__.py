"""Programs in production: following the deployed version, splitting traffic, falling back to another model."""
