"""Readers: streams of `Record`s and `RecordFault`s from files and sources.

Nothing is imported here: the process that parses HTML pages loads a few of these modules, and none of their settings.
"""
