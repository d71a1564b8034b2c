"""Models: weights on disk, the architectures they belong to, and the trees and decoders made of them."""
