-- When each GPU was shown last: shares of one keep it out of tests, and not for ever.

alter table device_claims add shown_up_ms bigint not null default control_ms();
comment on column device_claims.shown_up_ms is 'The control clock when its host passed the last test in which it was, be it beside jobs';
