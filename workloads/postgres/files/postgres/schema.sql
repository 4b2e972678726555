-- A table that is only read, and two that the client outside writes in one transaction.
CREATE TABLE kept AS SELECT n, md5(n::text) AS text FROM generate_series(1, :rows) AS n;
CREATE TABLE counter (value bigint NOT NULL);
INSERT INTO counter VALUES (0);
CREATE TABLE journal (number bigint PRIMARY KEY, written timestamptz DEFAULT clock_timestamp());
CHECKPOINT;
