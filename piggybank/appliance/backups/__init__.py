"""Backups: whole ones, the log between them, and what becomes of both.

    base       pg_basebackup of a data folder's own PostgreSQL, and every segment of its log since: any moment can be restored
    logical    pg_dump of any database: the moment at which it was made

A target holds one installation:

    installation.json                     whose it is
    backups/<id>/base.tar.gz | dump.pgc  the data
    backups/<id>/secrets.age              settings and key files, encrypted to the recovery key
    backups/<id>/manifest.json            written last: without it there is no backup
    wal/<system>/<segment>.gz             the log of a cluster, in segments of at most `store_files.WAL_EVERY_S` seconds
    archive/<sha256>.parquet              months whose rows are not in the database any more

Data files are not encrypted by us: they hold hashes of passwords and tokens, never those themselves, so what can be used again is in
`secrets.age` alone. Keep the target on storage that is encrypted all the same: names and amounts are in it.
"""
