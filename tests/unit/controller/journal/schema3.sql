-- Written by the last program of schema 3.
BEGIN TRANSACTION;
CREATE TABLE events(
    number INTEGER PRIMARY KEY,
    time_unix_s REAL NOT NULL,
    kind TEXT NOT NULL, node_id TEXT NOT NULL, pipeline_id TEXT NOT NULL,
    generation_id TEXT NOT NULL, attributes TEXT NOT NULL, checksum INTEGER NOT NULL
);
INSERT INTO "events" VALUES(3,0.5,'node_lost','n','p','g','{"a": "\u00fc"}',1491710986);
INSERT INTO "events" VALUES(4,1.5,'plan_ready','','','','{"plan": "2"}',1288140585);
CREATE TABLE records(
    number INTEGER PRIMARY KEY, written_s REAL NOT NULL,
    generation_id TEXT NOT NULL,
    kind INTEGER NOT NULL, body BLOB NOT NULL, checksum INTEGER NOT NULL
);
INSERT INTO "records" VALUES(1,1764200000.25,'k',1,X'0A01691201661A0170222C0A016B12016D2201002801321D09000000000000F03F19000000000000F03F39000000000000F03F58014001',2147401855);
INSERT INTO "records" VALUES(2,1764200000.25,'k',3,X'0A051A01072003',803900097);
CREATE TABLE saved(key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL);
INSERT INTO "saved" VALUES('cluster','{}',3980305686);
CREATE INDEX records_by_generation ON records(generation_id);
COMMIT;
PRAGMA user_version = 3;
