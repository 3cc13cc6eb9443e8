-- A customer's latest quotes are looked at with every new one.

create index quotes_latest on quotes (customer_id, asked_at_ms);
