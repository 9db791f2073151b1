"""Where stages run: threads, Dask, Ray, and machines with clones of their own."""
