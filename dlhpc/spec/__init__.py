"""What a user asks: the typed spec, how it is loaded, and messages that point at the line to mend.

``models`` holds the spec itself, ``load`` reads YAML with line numbers and turns every fault into a kind error.
Nothing here knows about sites, pictures, jobs or torch.
"""
