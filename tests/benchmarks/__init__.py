"""Speed, side by side in one run: `make bench`. Nothing here is collected by pytest; tests assert exactness, not time."""
