"""The images of a folder that are most like a photo, found with an index that the cache keeps."""
