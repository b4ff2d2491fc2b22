INSERT INTO snapshot_bands (id, name, kind, notes)
VALUES (?, ?, ?, ?)

INSERT INTO snapshot_orchestras (id, hall)
VALUES (?, ?)

INSERT INTO snapshot_records (band_id, price, a_column_with_a_name_that_is_so_long_that_its_label_is_cut_off)
VALUES (?, ?, ?)
RETURNING snapshot_records.id

SELECT snapshot_bands.id, snapshot_bands.name, snapshot_bands.kind
FROM snapshot_bands
WHERE snapshot_bands.id = ?

SELECT snapshot_records.id, snapshot_records.band_id, snapshot_records.price,
    snapshot_records.a_column_with_a_name_that_is_so_long_that_its_label_is_cut_off
FROM snapshot_records
WHERE ? = snapshot_records.band_id
ORDER BY snapshot_records.id

SELECT snapshot_bands.id, snapshot_bands.name, snapshot_bands.kind
FROM snapshot_bands
WHERE snapshot_bands.id = ?

SELECT snapshot_bands.notes
FROM snapshot_bands
WHERE snapshot_bands.id = ?

SELECT snapshot_bands.id, snapshot_bands.name, snapshot_bands.kind, snapshot_bands.notes
FROM snapshot_bands
ORDER BY snapshot_bands.id
LIMIT ?

SELECT snapshot_records.band_id, snapshot_records.id, snapshot_records.price,
    snapshot_records.a_column_with_a_name_that_is_so_long_that_its_label_is_cut_off
FROM snapshot_records
WHERE snapshot_records.band_id IN (?, …)
ORDER BY snapshot_records.id

SELECT snapshot_bands.id, snapshot_bands.name, snapshot_bands.kind, snapshot_bands.notes
FROM snapshot_bands
ORDER BY snapshot_bands.id
LIMIT ?

SELECT snapshot_records.id, snapshot_records.band_id, snapshot_records.price,
    snapshot_records.a_column_with_a_name_that_is_so_long_that_its_label_is_cut_off,
    anon_1.snapshot_bands_id
FROM (SELECT snapshot_bands.id AS snapshot_bands_id FROM snapshot_bands ORDER BY snapshot_bands.id LIMIT ?) AS anon_1
JOIN snapshot_records ON anon_1.snapshot_bands_id = snapshot_records.band_id
ORDER BY snapshot_records.id

SELECT anon_1.id, anon_1.name, anon_1.kind, anon_1.notes, snapshot_records_1.id,
    snapshot_records_1.band_id, snapshot_records_1.price,
    snapshot_records_1.a_column_with_a_name_that_is_so_long_that_its_label_is_cut_off
FROM (SELECT snapshot_bands.id AS id, snapshot_bands.name AS name, snapshot_bands.kind AS kind, snapshot_bands.notes AS notes FROM snapshot_bands ORDER BY snapshot_bands.id LIMIT ?) AS anon_1
LEFT OUTER JOIN snapshot_records AS snapshot_records_1 ON anon_1.id = snapshot_records_1.band_id
ORDER BY anon_1.id, snapshot_records_1.id

SELECT snapshot_orchestras.id, snapshot_bands.id, snapshot_bands.name, snapshot_bands.kind,
    snapshot_orchestras.hall
FROM snapshot_bands
JOIN snapshot_orchestras ON snapshot_bands.id = snapshot_orchestras.id
WHERE snapshot_bands.id = ?

SELECT count(snapshot_records.id) AS count_1, max(snapshot_records_1.price) AS max_1
FROM snapshot_records
JOIN snapshot_records AS snapshot_records_1 ON snapshot_records_1.band_id = snapshot_records.band_id
WHERE snapshot_records.id IN (?, …) AND snapshot_records.price > ?

SELECT snapshot_records.price + ? AS anon_1, CAST(snapshot_records.id AS VARCHAR) AS id
FROM snapshot_records
WHERE EXISTS (SELECT ? FROM snapshot_bands WHERE snapshot_bands.id = snapshot_records.band_id AND snapshot_bands.name = ?)

UPDATE snapshot_records
SET price=?
WHERE snapshot_records.id = ?

INSERT INTO snapshot_records (band_id, price)
VALUES (?, ?)
RETURNING snapshot_records.id

DELETE FROM snapshot_records
WHERE snapshot_records.id = ?

SELECT name
FROM snapshot_bands
WHERE id = ? AND name <> ?

SELECT count(*) AS count_1
FROM snapshot_bands

SELECT snapshot_bands.id, snapshot_bands.name
FROM snapshot_bands
WHERE snapshot_bands.id = ?
LIMIT ?
