"""The page of a run, `report.html`: one file that opens without a network (docs/report.md).

Names of classes, keys of rows and values of specs are untrusted: the templates escape them, and the
page's own policy lets no other script run and nothing be fetched.
"""

# Rows that are attacked for the curve, beside those of the gallery.
ATTACKED = 500
