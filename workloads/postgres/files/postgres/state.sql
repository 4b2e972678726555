SELECT 'started:' || pg_postmaster_start_time();
SELECT 'system:' || system_identifier FROM pg_control_system();
SELECT 'kept:' || count(*) || ' ' || md5(string_agg(text, '' ORDER BY n)) FROM kept;
SELECT 'helpers:' || string_agg(pid || ' ' || backend_type, ', ' ORDER BY backend_type)
    FROM pg_stat_activity WHERE backend_type IN ('checkpointer', 'background writer', 'walwriter');
SELECT 'written:' || value FROM counter;
SELECT 'journal:' || count(*) || ' ' || count(DISTINCT number) || ' ' || coalesce(max(number), 0) FROM journal;
