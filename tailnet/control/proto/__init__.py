"""The messages of the control protocol, generated from the .proto files here.

``make proto`` writes the modules anew; ``tools/generate_proto.py`` says how.
"""
