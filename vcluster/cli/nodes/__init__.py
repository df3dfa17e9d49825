"""Commands that run on nodes or copy to and from them."""
