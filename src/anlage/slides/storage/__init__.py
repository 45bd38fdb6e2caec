"""Where the bytes of a slide lie: local files, buckets, web servers, and copies of them."""
