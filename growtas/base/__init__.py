"""What every layer uses: settings, checks, files, progress, signals."""
