"""Where incidents are kept: folders that are whole or not there, an index that can be lost, bounds on both.

The folders are the truth. The index makes listing fast and keeps the rules' limits; it is rebuilt from the
folders whenever it is missing or unusable.
"""
