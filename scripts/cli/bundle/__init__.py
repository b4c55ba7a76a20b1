"""Makes and checks bundles: all that a stack needs, in one directory that is carried to its site.

A site checks a bundle before it has any package of this project: `verify`, and what it imports, need Python alone.
"""
