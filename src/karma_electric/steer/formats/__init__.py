"""Steering files of other projects, read and written: one module per format, `steering` for what they have in common.

None of these modules looks at a model or runs one. Everything is read as untrusted: nothing is unpickled except by
torch's weights-only reader, and sizes are checked against the file before anything is allocated.
"""
