"""What waits for a database that is away: lines on this disk, found again by whoever starts next."""
