"""Readers: one file a format, each a stream of `Record`s and `Fault`s.

Nothing is imported here: the process that parses HTML pages loads a few of these modules, and none of their settings.
"""
