"""Turn a collection into arrays: inverted index, word vectors, image features."""
