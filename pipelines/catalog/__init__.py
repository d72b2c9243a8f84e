"""From folders, buckets and tables to the rows of `images`: which photos there are, where and when they were taken."""
