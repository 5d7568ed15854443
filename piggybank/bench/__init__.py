"""Measuring what a machine carries: a throw-away database, the shipped server, a load, and two things to compare with.

`piggybank bench` and the developers' `make bench` are made of these. Nothing here is imported by a running installation.
"""
