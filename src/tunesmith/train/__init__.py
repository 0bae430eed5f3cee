"""Stage 4: curated rows and a frozen base become an adapter."""
