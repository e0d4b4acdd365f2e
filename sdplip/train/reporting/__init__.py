"""Results shown: tables, pictures, and one page that needs no network."""
